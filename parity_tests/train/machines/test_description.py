"""Which code a run was of."""

import subprocess

from train.machines import description


def test_code_is_named_by_its_commit_and_whether_it_was_changed(tmp_path, monkeypatch):
    file = tmp_path / "train" / "machines" / "description.py"
    file.parent.mkdir(parents=True)
    file.write_text("one\n")
    monkeypatch.setattr(description, "__file__", str(file))

    def git(*arguments: str) -> str:
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *author, *arguments]
        return subprocess.run(
            command, check=True, capture_output=True, text=True
        ).stdout

    assert description.describe_code() is None
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    commit = git("rev-parse", "HEAD").strip()
    assert description.describe_code() == commit[:12]
    file.write_text("two\n")
    assert description.describe_code() == f"{commit[:12]}-dirty"
