"""A process that posts to a webhook, so that whoever waits for it can end it, whatever the receiver does.

What to send comes on its input, as JSON, since every user of the machine sees a command line; the status of the answer,
or the class of what went wrong, goes to its output.
"""

import json
import sys

import requests
import tenacity

_TIMEOUT_S, _TRIES = 10.0, 4
# Worth another try: everything else the receiver means as it says.
_PASSING = (408, 425, 429, 500, 502, 503, 504)


def post(address: str, headers: dict[str, str], body: str) -> int:
    """The status of the answer, of which nothing else is read. Raises requests.RequestException."""

    def send() -> int:
        with requests.post(
            address, body.encode(), headers=headers, timeout=_TIMEOUT_S, allow_redirects=False, stream=True
        ) as answer:
            return answer.status_code

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(requests.RequestException)
        | tenacity.retry_if_result(lambda status: status in _PASSING),
        stop=tenacity.stop_after_attempt(_TRIES),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=10),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )
    return int(retrying(send) or 0)


if __name__ == "__main__":
    try:
        print(post(**json.load(sys.stdin)))
    except requests.RequestException as error:
        print(type(error).__name__)  # its text may carry the address, and with it a secret
