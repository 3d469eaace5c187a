"""From endpoints to open ports: names, peers, interfaces and cards of this host."""
