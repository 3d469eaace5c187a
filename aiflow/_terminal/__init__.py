"""The console side of every command: output, exit codes, option parsing. Shared by `aiflow.cli` and `aiflow.lab`."""
