"""The report of a run: one offline page and its pictures. Reads a run folder; runs, trains and times nothing."""
