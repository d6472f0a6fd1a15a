"""Dialogues, for instruction tuning (the stage `sft`): prompts are given, responses learnt.

    python data.py pack --input alpaca.jsonl --tokenizer merged.model --out shards/sft \\
        --prompt_field instruction input --response_field output

The format is BOS, the prompt, a space, the response, EOS. There is no other template: what should
stand before or between them ("### Response:") has to be in the fields. BOS and the prompt's tokens
are given, all others are learnt. {"instruction": "Translate.", "input": "sea", "output": "바다"}:

    <s> Translate. \\n sea   ▁바다 </s>
    [      given      ]   [ learnt  ]

Several prompt fields are joined by newlines; a row may lack some of them, but not all. White space
at the end of a prompt and at the beginning of a response is dropped.

--messages reads chats: [{"role": "system", "content": ...}, {"role": "user", ...}, {"role":
"assistant", ...}, ...], or with from and value (human, gpt) as ShareGPT has them. What comes before
an answer is its prompt, joined by newlines: a system message stands in front of the user's. Each
further exchange follows the EOS of the one before:

    <s> prompt 1   ▁response 1 </s>   prompt 2   ▁response 2 </s>
    [  given   ]   [    learnt    ]   [ given]   [    learnt    ]

The stage `sft` writes this format into its model directory as chat_template, so what uses
apply_chat_template asks in the way that was trained.
"""
from collections import Counter

from common.documents import Wanted, look_up, problem_of

# A dialogue travels through `pack` as one text, prompt MARK response MARK prompt MARK response ...:
# so all of it decides its hash.
MARK = "\x00"

# ---- One dialogue as one text -------------------------------------------------------------------


def join(exchanges: list[tuple[str, str]]) -> str:
    """The text of a dialogue."""
    parts = []
    for exchange in exchanges:
        for part in exchange:
            parts.append(part.replace(MARK, ""))
    return MARK.join(parts)


def split(dialogue: str) -> list[tuple[str, str]]:
    """The prompts and responses of what `join` returned.

    >>> split(join([("1 + 1?", "2"), ("And 2 + 2?", "4")]))
    [('1 + 1?', '2'), ('And 2 + 2?', '4')]
    """
    parts = dialogue.split(MARK)
    return list(zip(parts[::2], parts[1::2], strict=True))


def one_prompt(texts: list[str]) -> str:
    """Several texts as one prompt, each on a line of its own. What is empty is left out.

    >>> one_prompt(["Translate.", "", "sea "])
    'Translate.\\nsea '
    """
    prompt = ""
    for text in texts:
        if prompt and has_text(text):
            prompt = f"{prompt.rstrip()}\n{text}"
        elif has_text(text):
            prompt = text
    return prompt


def has_text(value: object) -> bool:
    """Whether a field's value is a text that is not blank."""
    return isinstance(value, str) and bool(value) and not value.isspace()


# ---- Rows of fields -----------------------------------------------------------------------------

# Names under which data sets hold more of the prompt than its main field. A row may have other
# texts that must not be in the prompt (a category, a rejected answer, prompt and answer once more),
# so the name decides: Alpaca has `input`, Dolly `context`, OpenOrca `system_prompt`.
BEFORE_THE_PROMPT = ("system", "system_prompt")
AFTER_THE_PROMPT = ("input", "context", "passage", "document")


def wanted_fields(prompt_fields: list[str], response_field: str) -> Wanted:
    """What a row has to hold: text in one of the prompt's fields or more, and in the response's."""
    first, *more = prompt_fields

    def problem(row: object) -> str:
        has_prompt = any(has_text(look_up(row, field)) for field in prompt_fields)
        if has_prompt:
            return problem_of(row, (response_field,))
        return problem_of(row, (first,))

    return Wanted((first, response_field), tuple(more), problem)


def of_fields(row: dict, prompt_fields: list[str], response_field: str) -> str:
    """The dialogue of a row: one exchange."""
    texts = [look_up(row, field) for field in prompt_fields]
    return join([(one_prompt(texts), look_up(row, response_field))])


def unused_fields(row: dict, used: list[str]) -> list[str]:
    """The fields of a row that have text of the prompt and are not used.

    >>> row = {"instruction": "Translate.", "input": "sea", "output": "바다", "id": "7"}
    >>> unused_fields(row, ["instruction", "output"])
    ['input']
    """
    names = (*BEFORE_THE_PROMPT, *AFTER_THE_PROMPT)
    return [name for name in names if name not in used and has_text(row.get(name))]


def about_unused(n_rows: int, n_with: int, unused: Counter[str], prompt_fields: list[str]) -> str:
    """What to say of `n_with` rows, of all `n_rows`, with text in fields that are not used."""
    counts = ", ".join(f"{name} ({count:,})" for name, count in unused.items())
    before = [name for name in BEFORE_THE_PROMPT if name in unused]
    after = [name for name in AFTER_THE_PROMPT if name in unused]
    fields = " ".join([*before, *prompt_fields, *after])
    return (f"{n_with:,} of {n_rows:,} rows have text in a field that is not used: {counts}; "
            f"if it belongs to the prompt, name it: --prompt_field {fields}")


# ---- Rows of chat messages ----------------------------------------------------------------------

# Who speaks: as OpenAI and Hugging Face call them, and as ShareGPT does.
ROLES = {
    "system": "user",  # its text stands in front of the user's
    "user": "user",
    "assistant": "assistant",
    "human": "user",
    "gpt": "assistant",
}


def wanted_messages(field: str) -> Wanted:
    """What a row has to hold: messages that make a dialogue."""
    def problem(row: object) -> str:
        messages = look_up(row, field)
        if not isinstance(messages, list):
            return problem_of(row, (field,)) or f"{field} is no list of messages"
        return read_messages(messages)[1]

    return Wanted((field,), (), problem)


def of_messages(row: dict, field: str) -> str:
    """The dialogue of a row that has one."""
    return join(read_messages(look_up(row, field))[0])


def read_messages(messages: list) -> tuple[list[tuple[str, str]], str]:
    """The exchanges of a chat, and "" or why it has none.

    What comes before an answer is its prompt: a system message, one or more of the user's. A prompt
    at the end that nobody answered is left out.

    >>> read_messages([{"role": "system", "content": "Be brief."},
    ...                {"role": "user", "content": "1 + 1?"},
    ...                {"role": "assistant", "content": "2"},
    ...                {"role": "user", "content": "Why?"}])
    ([('Be brief.\\n1 + 1?', '2')], '')
    """
    exchanges = []
    texts: list[str] = []  # of the prompt that is not answered yet
    for message in messages:
        if not isinstance(message, dict):
            return [], "a message that is no object"
        name = message.get("role", message.get("from"))
        text = message.get("content", message.get("value"))
        if not isinstance(name, str) or name not in ROLES:
            return [], f"a message of role {str(name)[:40]!a}"
        if not isinstance(text, str):
            return [], "a message without text"
        if ROLES[name] == "user":
            texts.append(text)
            continue

        prompt = one_prompt(texts)
        if not prompt:
            return [], "an answer without a prompt"
        if not has_text(text):
            return [], "an empty answer"
        exchanges.append((prompt, text))
        texts = []
    if not exchanges:
        return [], "no answer"
    return exchanges, ""


# The same for transformers' apply_chat_template: it gives the ids that `pack` gives, and without
# the last answer those up to where the model answers. (Jinja; `open`: has the prompt text yet?)
CHAT_TEMPLATE = (
    "{{ BOS }}"
    "{% set prompt = namespace(open=false) %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'].lstrip() + EOS }}"
    "{% set prompt.open = false %}"
    "{% elif message['content'].strip() %}"
    r"{{ '\n' if prompt.open else START }}"
    "{{ message['content'].rstrip() }}"
    "{% set prompt.open = true %}"
    "{% endif %}"
    "{% endfor %}"
)


def chat_template(bos: str, eos: str, start: str) -> str:
    """The template for a vocabulary. bos, eos: the tokens between which documents are packed.
    start: what stands before a prompt, if transformers does not put a space there by itself.

    They are written out, because the model's own bos_token and eos_token may be others."""
    template = ""
    for name, text in (("BOS", bos), ("EOS", eos), ("START", start)):
        template += "{% set " + name + " = " + repr(text) + " %}"
    return template + CHAT_TEMPLATE
