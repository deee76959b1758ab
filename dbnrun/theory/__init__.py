"""The theory bench: Algorithm 1 with full gradients, and a checker for the conditions on alpha(m) and eta(m).

sequences.py   text -> a sequence c m^-p log(m + 2)^-q; refuses everything else
conditions.py  two sequences -> each condition holds or fails, with the reason
problems.py    what is trained on: x, targets, activation, loss
algorithm.py   Algorithm 1 for many pairs (alpha, eta) as one stacked program
rows.py        the recorded rows and their curves, without torch
figures.py     curves -> figures, without torch
cli.py         the verb `dbnrun theory`
"""
