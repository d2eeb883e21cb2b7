"""Sessions that were idle for too long."""

from tests.integration.edge.conftest import StartEdge


async def test_an_idle_session_expires_and_says_so_before_and_after_the_sweep(start_edge: StartEdge) -> None:
    async with start_edge(session_ttl_s=60) as edge:
        session = (await edge.http.post("/api/chat", json={"message": "hello"})).json()["session_id"]
        edge.clock.pass_s(59)
        assert (await edge.http.post(f"/api/chat/{session}", json={"message": "still here"})).status_code == 200
        edge.clock.pass_s(61)

        idle = await edge.http.post(f"/api/chat/{session}", json={"message": "hello"})
        swept = await edge.app.state.library.sweep()
        gone = await edge.http.get(f"/api/session/{session}")

        assert (idle.status_code, idle.json()["code"]) == (404, "session_expired")
        assert swept.sessions == 1
        assert (gone.status_code, gone.json()["code"]) == (404, "session_expired")
        assert (await edge.http.get("/api/sessions")).json() == {"sessions": [], "next_cursor": None}
