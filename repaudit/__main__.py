"""``python -m repaudit``: the command where its script is not on the path."""

from repaudit.cli import app

if __name__ == "__main__":
    app(prog_name="repaudit")
