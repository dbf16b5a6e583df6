"""`hfgraph bench`: eager, Inductor and hfgraph on one model, in turns, after a gate on their results.

presets, tasks, systems   what is run: three tables
plan                      what was asked for, checked before any work
loading, running          a model, and a task on it: what a worker does
worker, process           one process per system, and its other end
gate, limits, cores       is it right; what the machine can do; who else uses it
drive, results            the order of things, and what was found
show, plot                as tables, as a figure
"""
