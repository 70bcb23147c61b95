"""`--budget`: what stands in for each site, so that a model fits a size, a number of FLOPs or a latency at least cost.

limits.py       what --budget says
places.py       what is replaced as one, and what grafts offer for it
stand_alone.py  a stand-in lowered alone: the bytes of its payload, its FLOPs, its seconds
judging.py      what a stand-in at one site is expected to cost the outputs
measuring.py    what each candidate of each place costs, on calibration data
allocation.py   which candidate for which place: an integer program
mix.py          the graft that puts the chosen stand-ins in
"""
