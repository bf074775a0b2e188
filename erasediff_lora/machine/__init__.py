"""The machine that it runs on: its devices, its network, its terminal."""
