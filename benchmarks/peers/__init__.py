"""The libraries compared with, a file each; a missing one is reported, not imported."""
