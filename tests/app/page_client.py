"""Requests as the page's script makes them, without a browser."""

import json
import uuid
from typing import Any

import httpx


class Visitor:
    """A session at the server of the page."""

    def __init__(self, address: str) -> None:
        self.client = httpx.Client(base_url=f"{address}gradio_api/", timeout=60)
        self.config = httpx.get(f"{address}config", timeout=60).json()

    def upload(self, name: str, content: bytes) -> httpx.Response:
        return self.client.post("upload", files={"files": (name, content)})

    def event_of(self, elem_id: str) -> dict[str, Any]:
        """The event of a button, as the page's config has it."""
        button = next(part["id"] for part in self.config["components"] if part["props"].get("elem_id") == elem_id)
        return next(each for each in self.config["dependencies"] if [button, "click"] in map(list, each["targets"]))

    def values_of(self, event: dict[str, Any]) -> list[Any]:
        """The values of an event's inputs as the page begins."""
        values = {part["id"]: part["props"].get("value") for part in self.config["components"]}
        return [values[part] for part in event["inputs"]]

    def start(self, elem_id: str, changes: dict[int, Any] | None = None) -> str:
        """Click a button with some of its inputs changed, by their position; the session."""
        event, session = self.event_of(elem_id), uuid.uuid4().hex
        data = self.values_of(event)
        for position, value in (changes or {}).items():
            data[position] = value
        body = {"data": data, "fn_index": event["id"], "session_hash": session, "trigger_id": event["targets"][0][0]}
        self.client.post("queue/join", json=body).raise_for_status()
        return session

    def messages(self, session: str) -> list[dict[str, Any]]:
        """All that the server says of the session until its event has ended."""
        found = []
        with self.client.stream("GET", "queue/data", params={"session_hash": session}) as response:
            for line in response.iter_lines():
                if line.startswith("data:"):
                    found.append(json.loads(line[5:]))
                    if found[-1]["msg"] in ("process_completed", "close_stream"):
                        break
        return found

    def click(self, elem_id: str, changes: dict[int, Any] | None = None) -> list[dict[str, Any]]:
        """Click a button; all messages until its event has ended."""
        return self.messages(self.start(elem_id, changes))


def error_of(messages: list[dict[str, Any]]) -> str:
    """The sentence with which an event ended."""
    assert not messages[-1]["success"]
    return str(messages[-1]["output"]["error"])


def file_data(path: str, name: str = "image.png") -> dict[str, Any]:
    """A file as the page's script names it to the server."""
    return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
