"""Dialogues, for instruction tuning (the stage `sft`): prompts are given, responses are learned.

    python data.py pack --input alpaca.jsonl --tokenizer merged.model --out shards/sft \\
        --prompt_field instruction input --response_field output

The format is BOS, the prompt, a space, the response, EOS. No other template is added: if there
should be text before or between them ("### Response:"), it has to be in the fields. BOS and the
prompt's tokens are given, all others are learned. For example, {"instruction": "Translate.",
"input": "sea", "output": "바다"} becomes

    <s> Translate. \\n sea   ▁바다 </s>
    [      given      ]   [ learned ]

Several prompt fields are joined by newlines; a row may lack some of them, but not all. White space
at the end of a prompt and at the beginning of a response is dropped.

--messages reads chats: [{"role": "system", "content": ...}, {"role": "user", ...}, {"role":
"assistant", ...}, ...], or ShareGPT's form with from and value (human, gpt). All messages before an
answer, joined by newlines, are its prompt, so a system message comes before the user's. Each
further exchange follows the EOS of the previous one:

    <s> prompt 1   ▁response 1 </s>   prompt 2   ▁response 2 </s>
    [  given   ]   [   learned    ]   [ given]   [   learned    ]

The stage `sft` writes this format into its model directory as chat_template, so programs that use
apply_chat_template prompt the model as it was trained.
"""
from collections import Counter

from common.documents import Wanted, look_up, problem_of

# `pack` handles a dialogue as one text, prompt MARK response MARK prompt MARK response ..., so that
# its hash depends on all of it.
MARK = "\x00"

# ---- One dialogue as one text -------------------------------------------------------------------


def join(exchanges: list[tuple[str, str]]) -> str:
    """The text that stands for a dialogue."""
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
    """Join several texts into one prompt, each on a line of its own. Empty ones are left out.

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
    """Is a field's value a text that is not blank?"""
    return isinstance(value, str) and bool(value) and not value.isspace()


# ---- Rows of fields -----------------------------------------------------------------------------

# Fields in which data sets have a part of the prompt besides the main field: Alpaca has `input`,
# Dolly `context`, OpenOrca `system_prompt`. They are known by name, because a row may have other
# texts that must not be in the prompt (a category, a rejected answer, prompt and answer again).
BEFORE_THE_PROMPT = ("system", "system_prompt")
AFTER_THE_PROMPT = ("input", "context", "passage", "document")


def wanted_fields(prompt_fields: list[str], response_field: str) -> Wanted:
    """What a row must have: text in at least one of the prompt's fields, and in the response's."""
    first, *more = prompt_fields

    def problem(row: object) -> str:
        has_prompt = any(has_text(look_up(row, field)) for field in prompt_fields)
        if has_prompt:
            return problem_of(row, (response_field,))
        return problem_of(row, (first,))

    return Wanted((first, response_field), tuple(more), problem)


def of_fields(row: dict, prompt_fields: list[str], response_field: str) -> str:
    """The dialogue of a row, which is one exchange."""
    texts = [look_up(row, field) for field in prompt_fields]
    return join([(one_prompt(texts), look_up(row, response_field))])


def unused_fields(row: dict, used: list[str]) -> list[str]:
    """The fields of a row that seem to be part of the prompt and are not used.

    >>> row = {"instruction": "Translate.", "input": "sea", "output": "바다", "id": "7"}
    >>> unused_fields(row, ["instruction", "output"])
    ['input']
    """
    names = (*BEFORE_THE_PROMPT, *AFTER_THE_PROMPT)
    return [name for name in names if name not in used and has_text(row.get(name))]


def about_unused(n_rows: int, n_with: int, unused: Counter[str], prompt_fields: list[str]) -> str:
    """A message about the `n_with` rows, of all `n_rows`, with text in fields that are not used."""
    counts = ", ".join(f"{name} ({count:,})" for name, count in unused.items())
    before = [name for name in BEFORE_THE_PROMPT if name in unused]
    after = [name for name in AFTER_THE_PROMPT if name in unused]
    fields = " ".join([*before, *prompt_fields, *after])
    return (f"{n_with:,} of {n_rows:,} rows have text in a field that is not used: {counts}; "
            f"if it belongs to the prompt, name it: --prompt_field {fields}")


# ---- Rows of chat messages ----------------------------------------------------------------------

# Who speaks: as OpenAI and Hugging Face call them, and as ShareGPT does.
ROLES = {
    "system": "user",  # its text is put before the user's
    "user": "user",
    "assistant": "assistant",
    "human": "user",
    "gpt": "assistant",
}


def wanted_messages(field: str) -> Wanted:
    """What a row must have: a list of messages that is a dialogue."""
    def problem(row: object) -> str:
        messages = look_up(row, field)
        if not isinstance(messages, list):
            return problem_of(row, (field,)) or f"{field} is not a list of messages"
        return read_messages(messages)[1]

    return Wanted((field,), (), problem)


def of_messages(row: dict, field: str) -> str:
    """The dialogue of a row that has one."""
    return join(read_messages(look_up(row, field))[0])


def read_messages(messages: list) -> tuple[list[tuple[str, str]], str]:
    """The exchanges of a chat, and ""; or [], and why it is not usable.

    The messages before an answer are its prompt: a system message, and one or more of the user's. A
    prompt at the end without an answer is left out.

    >>> read_messages([{"role": "system", "content": "Be brief."},
    ...                {"role": "user", "content": "1 + 1?"},
    ...                {"role": "assistant", "content": "2"},
    ...                {"role": "user", "content": "Why?"}])
    ([('Be brief.\\n1 + 1?', '2')], '')
    """
    exchanges = []
    texts: list[str] = []  # of the prompt that has no answer yet
    for message in messages:
        if not isinstance(message, dict):
            return [], "a message that is not an object"
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


# The same format as a Jinja template for transformers' apply_chat_template. It gives the same ids
# as `pack`; without the last answer, those up to where the model is to answer. (`open`: does the
# prompt have text already?)
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
    """The template for a vocabulary. bos, eos: the tokens around packed documents. start: what to
    put before a prompt if transformers does not put a space there by itself.

    bos and eos are written out, because the model's own bos_token and eos_token may differ."""
    template = ""
    for name, text in (("BOS", bos), ("EOS", eos), ("START", start)):
        template += "{% set " + name + " = " + repr(text) + " %}"
    return template + CHAT_TEMPLATE
