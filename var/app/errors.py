"""Errors of the page: one sentence for whoever uses it, the traceback for whoever runs it."""

import functools
import html
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from tokenizer.errors import InputError, one_line

log = logging.getLogger(__name__)

UNEXPECTED = "This did not work, and not because of what you gave: the terminal that runs `var app` says more."


@contextmanager
def as_sentences() -> Iterator[None]:
    """Inside, errors are raised as those that gradio shows; unexpected ones are logged with their traceback."""
    try:
        yield
    except gr.Error:
        raise
    except InputError as error:
        raise page_error(str(error)) from error
    except OSError as error:  # a full disk, a folder that was removed
        log.exception("an error of the system in the page")
        raise page_error(f"The system refused it: {one_line(error)}.") from error
    except Exception as error:
        log.exception("an error in the page")
        raise page_error(UNEXPECTED) from error


def page_error(sentence: str) -> gr.Error:
    """Return the error with which gradio shows a sentence; what was given in it is no HTML."""
    return gr.Error(html.escape(sentence, quote=False), print_exception=False)


def in_sentences(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function or generator function of an event with its errors `as_sentences`."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generator(*values: Any) -> Iterator[Any]:
            with as_sentences():
                yield from function(*values)

        return generator

    @functools.wraps(function)
    def call(*values: Any) -> Any:
        with as_sentences():
            return function(*values)

    return call
