"""Does interpolation help, how much, and where not: the comparison behind docs/evidence.md.

    python tests/benchmarks/effect/run.py --minutes 60                # go on with the runs; see its docstring
    python tests/benchmarks/effect/table.py                           # what there is so far, as tables and figures
    python tests/benchmarks/effect/noise.py                           # where labels of the domain are wrong

`pairs` says what is trained on what, `methods` how. `training` does one run. `store` keeps what it found, example by
example. `stats` tells differences from noise. `summary` compares methods, also without the amount of domain data.
"""
