"""Ask a running `gear serve` with OpenAI's own client.

Run: python samples/03_server_client.py http://127.0.0.1:8000 ["your question"]
"""

import sys

from openai import OpenAI

DEFAULT_QUESTION = "Explain in three sentences why the sky is blue."


def main(url: str, question: str = DEFAULT_QUESTION) -> None:
    """Stream one answer and say how many tokens it took.

    Args:
        url: Address that `gear serve` has printed.
        question: What to ask.
    """
    with OpenAI(base_url=f"{url}/v1", api_key="not needed") as client:
        model = client.models.list().data[0].id
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            max_completion_tokens=200,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        for chunk in stream:
            if chunk.usage:
                usage = chunk.usage
            else:
                print(chunk.choices[0].delta.content or "", end="", flush=True)
        print(f"\n\n{usage.prompt_tokens} prompt tokens, {usage.completion_tokens} new ones")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
