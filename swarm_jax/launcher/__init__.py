"""Starts, watches and stops the processes of a swarm on one machine.

flags.py         options that the scripts share; errors as one line
imports.py       large libraries, imported in less time
environment.py   threads, devices and caches of each process
signals.py       which of them end a process
processes.py     child processes: logs, deaths, stopping
swarm.py         bootstrap, stage servers and trainer of one run
churn.py         seeded plan of faults: who gets which signal, and when
roster.py        servers and trainers of a soak: signals, deaths, replacements
soak.py          a run of so many seconds under faults, watched
soak_options.py  its options
figures.py       recovery, throughput and losses of a soak
control.py       plain training of the same steps, for comparison
preemption.py    waits for a cloud's notice of preemption
links.py         a TCP proxy between peers, which shapes or spoils connections
lanes.py         one direction of a shaped link
commands.py      the exact commands for the next machine
progress.py      what the terminal shows while a run goes on
summary.py       the table at its end
runs.py          reads the metrics of a run
compare.py       several runs side by side: table and curves
benchmark.py     tokens per second of two ways to train, in turn
variations.py    which runs a sweep consists of: fields, named variants
sweep.py         runs them, several at a time
sweep_results.py  means over seeds: table, page
sweep_plot.py    their losses as a picture
checkpoint_times.py  what saving and moving cost a swarm
"""
