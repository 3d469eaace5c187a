"""What the command and the lab share: photographs, JSON, extras."""
