"""The panel in JupyterLab."""
