"""Sweeps: composing, planning and running many jobs, on this machine or a cluster."""
