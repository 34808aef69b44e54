"""The server process: listen, log the address, and finish waiting requests at SIGTERM."""

import logging
import math
import socket
from collections.abc import Callable
from contextlib import closing, suppress
from errno import EADDRINUSE
from typing import Any

import uvicorn

from lora_hf.adapters.saved_adapter import SavedAdapter
from lora_hf.arguments import MAX_MERGED
from lora_hf.config import ModelConfig
from lora_hf.data.parts import check_long
from lora_hf.errors import UserError
from lora_hf.saved.find_adapter import base_config, find_adapter
from lora_hf.saved.inference import check_takes_adapters
from lora_hf.serving.app import create_app
from lora_hf.serving.bearer import TOKEN, check_reachable, token_of_environment
from lora_hf.serving.engine import Engine
from lora_hf.serving.limits import Limits
from lora_hf.serving.service import Service

SPARE = 5
"""Seconds beyond `timeout` that open connections have when the server shuts down."""
OTHERS = 256
"""Connections without a waiting request that may be open as well."""
logger = logging.getLogger(__name__)


def serve(
    base: str | None,
    adapters: list[str],
    host: str,
    port: int,
    limits: Limits,
    quantization: str | None = None,
    engine: str | None = None,
    max_merged: int = MAX_MERGED,
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        base: the base model; None takes the one named by the first adapter.
        adapters: `NAME=DIR` each; a folder, a run directory, or a name on the Hub.
        host: the address to listen on.
        port: 0 takes a free one.
        limits: what requests may ask for.
        quantization: of the base's linear layers, as `lora_hf.load` has it.
        engine: as `lora_hf.load` has it.
        max_merged: as `lora_hf.load` has it.

    Raises:
        UserError: an adapter or the base cannot be loaded, the address is not available, or other machines
            could connect and the environment has no token.
    """
    token = token_of_environment()
    check_long(limits.long, "--long")
    if limits.adapters_dir and not limits.adapters_dir.is_dir():
        raise UserError(f"--adapters-dir {str(limits.adapters_dir)!r}: no such folder")
    found = {name: find_adapter(where) for name, where in named(adapters).items()}
    if base and found:
        check_takes_adapters(base)
    config = base_for(list(found.values()), base)
    listed = ", ".join(f"{name} from {saved.source}" for name, saved in found.items())
    of = f" and {len(found)} adapter{'s' * (len(found) > 1)}: {listed}" if found else ", without adapters"
    with listening(host, port) as listener:
        check_reachable(host, listener.getsockname()[0], token)
        logger.info("loading %s%s", config.model_name_or_path, of)
        model = Engine(config, found, None, quantization, engine, max_merged)
        with closing(Service(model, limits)) as service:
            logger.info("loaded %s", service.engine.description)
            app, grace = create_app(service, token), math.ceil(limits.timeout) + SPARE
            if found:
                without = model.base_problem or "without it, the base model answers"
                text = 'requests choose one of %s by "adapter"; %s'
                logger.info(text, ", ".join(map(repr, found)), without)
            if token:
                logger.info("requests need the token in %s", TOKEN)
            most = limits.max_queue + limits.max_batch + OTHERS
            message = "serving on %s (API page: /docs; stop with Ctrl-C)"
            run(app, listener, message, grace, service.batcher.drain, most)
    logger.info("all waiting requests are finished")


def base_for(adapters: list[SavedAdapter], base: str | None) -> ModelConfig:
    """Return the given base in the storage format of the first adapter's, or that adapter's own base.

    Its head is untied if one of them needs it, which changes no output of the others.
    Adapters that record other revisions of it are reported, because only one can be loaded.

    Raises:
        UserError: neither is given.
    """
    if adapters:
        config = base_config(adapters[0], base)
        if any(base_config(saved, base).untie_head for saved in adapters):
            config = config.model_copy(update={"untie_head": True})
        for saved in adapters[1:]:
            revision = base_config(saved, base).revision
            if revision and config.revision and revision != config.revision:
                logger.warning(
                    "%s is for revision %s of the base, but revision %s is served, for which %s is; its "
                    "summaries may be worse than it was scored with",
                    *(saved.source, revision, config.revision, adapters[0].source),
                )
        return config
    if base is None:
        raise UserError("give --adapter NAME=DIR, or --base DIR for a model without adapters")
    return ModelConfig(model_name_or_path=base).with_name_field("--base")


def named(adapters: list[str]) -> dict[str, str]:
    """Parse `NAME=DIR` arguments to a dict.

    Raises:
        UserError: another format, or a name that is given twice.
    """
    found: dict[str, str] = {}
    for text in adapters:
        name, equals, where = text.partition("=")
        if not equals or not name or not where:
            raise UserError(f"--adapter {text!r}: write --adapter NAME=DIR")
        if name in found:
            raise UserError(f"--adapter {text!r}: the name {name!r} is taken")
        found[name] = where
    return found


def listening(host: str, port: int) -> socket.socket:
    """Bind a socket, to which nobody can connect yet.

    Raises:
        UserError: the address is not available.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        remedy = "; choose another --port" if getattr(error, "errno", None) == EADDRINUSE else ""
        raise UserError(f"--host {host} --port {port}: {error}{remedy}") from None
    return listener


def run(
    app: Any,
    listener: socket.socket,
    message: str,
    grace: int,
    at_end: Callable[[], None],
    most: int | None = None,
) -> None:
    """Run an application until SIGTERM or Ctrl-C, then finish its open requests.

    Args:
        app: an ASGI application.
        listener: the bound socket.
        message: logged when the server accepts connections, with the address for `%s`.
        grace: seconds that open requests have at shutdown.
        at_end: called when the shutdown starts.
        most: connections and requests at once; one more is 503.
    """
    options: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
    options |= {
        "http": "h11",
        "limit_concurrency": most,
    }  # h11 limits the size of a request's head, httptools does not
    settings = uvicorn.Config(app, timeout_graceful_shutdown=grace, **options)
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again after the shutdown
        _Server(settings, message, at_end).run([listener])


class _Server(uvicorn.Server):
    """Log the address at the start, and call `at_end` at the shutdown."""

    def __init__(self, settings: uvicorn.Config, message: str, at_end: Callable[[], None]) -> None:
        super().__init__(settings)
        self.message, self.at_end = message, at_end

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        host, port = sockets[0].getsockname()[:2]
        logger.info(self.message, f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    async def shutdown(self, sockets: Any = None) -> None:
        self.at_end()
        await super().shutdown(sockets)
