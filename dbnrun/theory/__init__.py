"""The theory bench: Algorithm 1 with full gradients, and a checker for the conditions on alpha(m) and eta(m).

expression.py  text -> a sequence in m; refuses what is hostile or out of range
growth.py      a sequence -> its leading term c r^m m^p (log m)^q
conditions.py  two leading terms -> each condition holds, fails or unknown, with the reason
problems.py    what is trained on: x, targets, activation, loss
algorithm.py   Algorithm 1 for many pairs (alpha, eta) as one stacked program
rows.py        the recorded rows, without torch
figures.py     rows -> figures, without torch
cli.py         the verb `dbnrun theory`
"""
