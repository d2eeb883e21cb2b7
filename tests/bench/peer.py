"""What people write by hand: one process, FastAPI, the Agents SDK's `run_streamed`, server-sent events. Nothing tuned.

Without accounts, sessions, database, retrieval, citations and resumption: it does less than the pair.
"""

import json
from collections.abc import AsyncIterator

from agents import Agent, Runner, set_tracing_disabled
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import BaseModel

# Tracing would upload every prompt to OpenAI, and cost the peer time.
set_tracing_disabled(disabled=True)

agent = Agent(name="assistant", instructions="You are a helpful assistant.", model="gpt-5-mini")
app = FastAPI()


class ChatPost(BaseModel):
    message: str


@app.post("/chat")
async def chat(post: ChatPost) -> StreamingResponse:
    async def stream() -> AsyncIterator[str]:
        result = Runner.run_streamed(agent, post.message)
        async for event in result.stream_events():
            if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent):
                yield f"data: {json.dumps({'content': event.data.delta})}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream")
