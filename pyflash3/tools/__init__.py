"""What `python -m pyflash3` runs: info, selftest and demo."""
