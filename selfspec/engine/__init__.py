"""How a prompt is decoded: draft, verify, commit. Read this folder first; it knows no drafter by name."""
