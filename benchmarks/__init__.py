"""The benchmarks: `bench_<slug>.py` and `bench_<model>.py` list cases, `harness.py` times them, `report.py` draws the
pictures.

Run them as `python -m fastface bench`.
"""
