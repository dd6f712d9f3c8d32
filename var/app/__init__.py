"""The page: drawing, editing, looking inside, features and training in a browser."""

import os

# Read by gradio and what it imports, when they are imported: nothing is sent anywhere.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
