"""What is known of a process by its pid."""

from pathlib import Path


def is_alive(pid):
    """False for one that has ended, even if nobody has waited for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
