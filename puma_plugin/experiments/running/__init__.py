"""One run: checked, trained, stopped, continued and evaluated, in one process or several."""
