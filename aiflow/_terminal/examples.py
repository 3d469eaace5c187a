"""Examples of each command, for its ``--help``. A test parses every line, and fails for a command without one."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "": (
        ("aiflow demo", "Send 512 photographs from process to process, and draw a report."),
        ("aiflow recv inbox -p local:x", "Receive files in one terminal …"),
        ("aiflow send photos -p local:x", "… and send a directory from another one."),
    ),
    "send": (
        ("aiflow send photos -p local:x", "Send a directory to a process of this machine."),
        ("aiflow send photos -p af_packet:eth1 -p af_packet:eth2", "Over two interfaces, to another machine."),
        ("aiflow send photos -p local:x --resume", "Go on with a broken transfer."),
        ("aiflow send photos -p local:x --watch", "Send new files as they appear, until Ctrl-C."),
        ("tar c photos | aiflow send - -p local:x", "Send a stream; the other side: aiflow recv - -p local:x | tar x"),
    ),
    "recv": (
        ("aiflow recv inbox -p 'local:x*4'", "Write what arrives to inbox, until all senders have closed."),
        ("aiflow recv inbox -p local:x --slices 1 --json", "Stop after one slice, and print a JSON document."),
        ("aiflow recv - -p local:x | tar x", "Unpack a stream, or a directory, without files in between."),
    ),
    "ports": (
        ("aiflow ports", "List what works here, and say why the rest does not."),
        ("aiflow ports --json", "The same as a JSON document."),
    ),
    "ports bind": (
        ("aiflow ports bind --dry-run 0000:3b:00.0", "Print what would be written, as a shell script."),
        ("sudo aiflow ports bind 0000:3b:00.0 0000:3b:00.1", "Bind two cards."),
    ),
    "ports unbind": (("sudo aiflow ports unbind 0000:3b:00.0", "Give a card back to its driver."),),
    "doctor": (
        ("aiflow doctor", "Show what this aiflow is built from, and what to mend."),
        ("aiflow doctor --fix", "Also mend what is safe, and say how."),
        ("aiflow doctor --json", "The same as a JSON document."),
    ),
    "top": (
        ("aiflow top", "Watch the Senders and Receivers of this user; q ends."),
        ("aiflow top --once --interval 5", "Print one view, with the rates of five seconds, for a log."),
    ),
    "diagnose": (
        ("aiflow diagnose", "Watch for five seconds, and say what bounds each transfer."),
        ("aiflow diagnose --seconds 30 --json", "Watch longer, and print a JSON document."),
    ),
    "metrics": (
        ("aiflow metrics", "Serve a Prometheus on this machine, until Ctrl-C."),
        ("aiflow metrics --listen 0.0.0.0:9105", "Serve a Prometheus on other hosts, too."),
    ),
    "demo": (
        ("aiflow demo", "All 512 photographs over four ports."),
        ("aiflow demo --images 64 --ports 2 --report small.png", "A smaller demonstration."),
    ),
    "completion": (
        ('eval "$(aiflow completion bash)"', "Complete in this bash. A line of ~/.bashrc makes it permanent."),
        ('eval "$(aiflow completion zsh)"', "Complete in this zsh. A line of ~/.zshrc makes it permanent."),
        ("aiflow completion fish | source", "Complete in this fish. A line of config.fish makes it permanent."),
    ),
    "lab": (
        ("sudo aiflow lab up", "Create a cluster of four nodes and a switch …"),
        ("sudo aiflow lab status", "… look at it …"),
        ("sudo aiflow lab down", "… and remove it."),
    ),
    "lab up": (
        ("sudo aiflow lab up --ports 2 --rate 1gbit", "Nodes with two ports of 1 Gbit/s."),
        ("sudo aiflow lab up --rates 100,100,50,10 --loss 0.01", "Ports of different speed, and a switch that loses."),
    ),
    "lab status": (("sudo aiflow lab status --json", "Every port's counters as a JSON document."),),
    "lab down": (("sudo aiflow lab down --all", "Also remove the cluster of a running experiment."),),
    "lab run": (
        ("sudo aiflow lab run fig6 --quick", "A functional check of one experiment."),
        ("sudo aiflow lab run all --out results", "All experiments, each measured three times."),
    ),
}
"""Words of a command → command lines and what each does."""
