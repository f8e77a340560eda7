"""From a spec to the objects that it asks for: pure functions that return plain dicts, fresh ones at each call.

`render.children` is the whole of it in one list; `template.pod_template` is the pod that serves.
"""
