"""How much the app takes and keeps: whatever comes in, memory and time stay bounded."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Bounds of one running app."""

    picture_bytes: int = 20 * MIB  # Of an uploaded file
    picture_pixels: int = 40_000_000  # Of a picture, before it is decoded
    pictures: int = 4  # To one question, videos among them
    video_seconds: float = 120.0  # Of a video
    question_characters: int = 4_000
    body_bytes: int = 2 * MIB  # Of every other request; a policy is the largest
    body_seconds: float = 60.0  # Until a request has been sent to its end
    new_tokens: int = 512  # Of an answer
    waiting: int = 16  # Jobs in the queue
    kept_bytes: int = 512 * MIB  # Of pictures and results together; the oldest go first
    kept_seconds: float = 4 * 3600.0  # Since a picture or a result was last used
    unwatched_seconds: float = 20.0  # Until work that nobody watches any more is given up
