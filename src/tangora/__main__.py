"""``python -m tangora``: what ``accelerate launch -m tangora`` runs."""

from tangora.cli import main

main()
