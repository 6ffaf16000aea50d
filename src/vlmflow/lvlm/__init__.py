"""The model as everyone else sees it: loading, prompt to inputs and layout, pixel geometry."""
