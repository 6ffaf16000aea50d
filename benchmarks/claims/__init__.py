"""The paper's claims put to the test: measured, judged by rules set beforehand, and written down.

``python -m benchmarks.claims measure --out STORES`` answers everything (resumable: hours on a CPU);
``python -m benchmarks.claims page --out STORES`` writes ``docs/claims.md`` from what is stored.
"""
