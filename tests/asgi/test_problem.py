import pytest

from asgi_enhance import Problem
from asgi_enhance.testing.driver import Response, WebSocket, request, websocket_scope


async def test_a_problem_is_a_response_of_rfc_9457() -> None:
    problem = Problem(
        429,
        type="https://example.org/quota",
        detail="Come back later.",
        extensions={"limit": 5},
        headers=[(b"retry-after", b"7")],
    )
    response = await request(problem)
    assert response.status == 429
    assert response.header("content-type") == "application/problem+json"
    assert response.header("content-length") == str(len(response.body))
    assert response.header("retry-after") == "7"
    assert response.json() == {
        "type": "https://example.org/quota",
        "title": "Too Many Requests",
        "status": 429,
        "detail": "Come back later.",
        "limit": 5,
    }


async def test_head_gets_the_headers_alone() -> None:
    response = await request(Problem(503), method="HEAD")
    assert response.body == b""
    assert int(response.header("content-length") or 0) > 0


async def test_a_websocket_is_refused_with_the_same_response() -> None:
    async with WebSocket(Problem(503, detail="Full."), websocket_scope()) as socket:
        answer = await socket.refused()
    assert isinstance(answer, Response)
    assert (answer.status, answer.json()["detail"]) == (503, "Full.")


@pytest.mark.parametrize("extensions", [{}, None])
async def test_a_websocket_is_closed_where_no_denial_response_is_offered(extensions: object) -> None:
    async with WebSocket(Problem(503, close_code=1013), websocket_scope(extensions=extensions)) as socket:
        answer = await socket.refused()
    assert answer == {"type": "websocket.close", "code": 1013, "reason": "Service Unavailable"}


async def test_a_client_that_has_left_already_gets_nothing() -> None:
    socket = WebSocket(Problem(503), websocket_scope(), [{"type": "websocket.disconnect", "code": 1006}])
    assert await socket.run() == []


def test_a_status_without_a_phrase_is_called_like_the_first_of_its_class() -> None:
    assert Problem(499).phrase == "Bad Request"
    assert Problem(599).phrase == "Internal Server Error"
