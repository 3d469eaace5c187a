"""Figures of this process's Senders and Receivers for those who look from outside: `aiflow top`, Prometheus, traces."""
