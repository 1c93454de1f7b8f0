"""The best that the API's own framework can do: an empty endpoint, and one that reads Redis.

    python -m benchmarks.load_reference PORT REDIS_URL

`GET /empty` answers an empty object; `GET /read/KEY` answers a hash of Redis, read with the async
client, as JSON. Both without authentication, validation, or anything else that a service needs.
"""

from __future__ import annotations

import sys
from typing import Any

import redis.asyncio
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse


def create_app(redis_url: str) -> FastAPI:
    """The app."""
    app = FastAPI()
    client = redis.asyncio.Redis.from_url(redis_url, decode_responses=True)

    @app.get("/empty")
    async def empty() -> JSONResponse:
        return JSONResponse({})

    @app.get("/read/{key}")
    async def read(key: str) -> JSONResponse:
        fields: Any = await client.hgetall(key)
        return JSONResponse(fields)

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(sys.argv[2]), port=int(sys.argv[1]), log_level="warning")
