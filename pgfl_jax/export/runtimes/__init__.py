"""Programs that run an exported model with NumPy and one runtime alone.

Each module ``run_<runtime>`` has ``PACKAGES``, the modules that it may import, and
``load(path, contract)``, which imports them. Nothing here imports anything else of ours: see
``_main.py``.
"""
