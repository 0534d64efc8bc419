"""Events reach one reader, in a thread or in an event loop, and so does an error."""

import asyncio
import threading

import pytest

from gear_trt.errors import ErrorCode, GearError
from gear_trt.serving import Ticket, TokenEvent

FAILURE = GearError(ErrorCode.CLOSED, "closed", hint="none")


def event(number, *, reason=None, sample=0):
    return TokenEvent(
        sample=sample,
        token=number,
        text=str(number),
        finish_reason=reason,
        prompt_tokens=1,
        shared_tokens=0,
        generated_tokens=number,
    )


def put_all(ticket, *, delay=0.001):
    for number in range(1, 6):
        threading.Event().wait(delay)
        ticket.put(event(number, reason="stop" if number == 5 else None))


async def collect(ticket):
    return [one.token async for one in ticket]


@pytest.mark.parametrize("delay", [0, 0.001])
def test_a_thread_reads_to_the_end(delay):
    ticket = Ticket(1)
    writer = threading.Thread(target=put_all, args=(ticket,), kwargs={"delay": delay})
    writer.start()
    assert [one.token for one in ticket] == [1, 2, 3, 4, 5]
    writer.join()


@pytest.mark.parametrize("delay", [0, 0.001])
def test_tasks_read_side_by_side(delay):
    async def main():
        tickets = [Ticket(1) for _ in range(20)]
        writers = [
            threading.Thread(target=put_all, args=(ticket,), kwargs={"delay": delay})
            for ticket in tickets
        ]
        for writer in writers:
            writer.start()
        return await asyncio.gather(*map(collect, tickets))

    assert asyncio.run(main()) == [[1, 2, 3, 4, 5]] * 20


def test_reading_ends_with_the_last_sample():
    ticket = Ticket(2)
    ticket.put(event(1, sample=1, reason="stop"))
    ticket.put(event(2))
    ticket.put(event(3, reason="length"))
    assert [(one.sample, one.token) for one in ticket] == [(1, 1), (0, 2), (0, 3)]
    assert list(ticket) == []


def test_an_error_follows_the_events_before_it():
    def failed():
        ticket = Ticket(2)
        ticket.put(event(1))
        ticket.fail(FAILURE)
        return ticket

    reader = iter(failed())
    assert next(reader).token == 1
    with pytest.raises(GearError, match="closed"):
        next(reader)
    with pytest.raises(GearError, match="closed"):
        asyncio.run(collect(failed()))


def test_a_reader_that_went_away_harms_no_writer():
    """As when a server's event loop is closed while an answer is computed."""
    ticket = Ticket(1)
    loop = asyncio.new_event_loop()
    reader = aiter(ticket)
    ticket.put(event(1))
    assert loop.run_until_complete(anext(reader)).token == 1
    loop.close()
    ticket.put(event(2, reason="stop"))
    assert [one.token for one in ticket] == [2]


def test_cancel():
    ticket = Ticket(1)
    assert not ticket.is_cancelled
    ticket.cancel()
    assert ticket.is_cancelled
