"""Estimates of a run's memory, disk and time, before anything is downloaded or trained."""
