"""How fast aha is beside its peers, measured side by side in one run on this machine: `make bench`."""
