"""The host's side of one guest, a program of its own: ``python -I -S`` runs this directory."""
