//! Templates for models that bring none.

/// Name and Jinja text of every built-in template.
pub const BUILT_INS: &[(&str, &str)] = &[
    ("chatml", CHATML),
    ("llama-2", LLAMA_2),
    ("llama-3", LLAMA_3),
    ("mistral", MISTRAL),
    ("zephyr", ZEPHYR),
    ("plain", PLAIN),
];

/// OpenAI's chat markup: SmolLM2, Qwen, Yi and many fine-tunes.
const CHATML: &str = "\
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
";

/// Llama 2 Chat: the system prompt lies within the first user turn, every pair of turns is a sequence of its own.
const LLAMA_2: &str = "\
{%- set chat = namespace(system='') -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {%- if not loop.first -%}
            {{- raise_exception('a system message must come first') -}}
        {%- endif -%}
        {%- set chat.system = '<<SYS>>\\n' + message.content + '\\n<</SYS>>\\n\\n' -%}
    {%- elif message.role == 'user' -%}
        {{- (bos_token or '') + '[INST] ' + (chat.system + message.content).strip() + ' [/INST]' -}}
        {%- set chat.system = '' -%}
    {%- else -%}
        {{- ' ' + message.content.strip() + ' ' + (eos_token or '') -}}
    {%- endif -%}
{%- endfor -%}
";

/// Llama 3 Instruct, without the dates of 3.1.
const LLAMA_3: &str = "\
{{- bos_token or '' -}}
{%- for message in messages -%}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content.strip() + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
";

/// Mistral Instruct: one beginning, then pairs of turns; the system prompt lies within the first user turn.
const MISTRAL: &str = "\
{{- bos_token or '' -}}
{%- set chat = namespace(system='') -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {%- if not loop.first -%}
            {{- raise_exception('a system message must come first') -}}
        {%- endif -%}
        {%- set chat.system = message.content + '\\n\\n' -%}
    {%- elif message.role == 'user' -%}
        {{- '[INST] ' + chat.system + message.content + ' [/INST]' -}}
        {%- set chat.system = '' -%}
    {%- else -%}
        {{- ' ' + message.content.strip() + (eos_token or '') -}}
    {%- endif -%}
{%- endfor -%}
";

/// Zephyr and TinyLlama Chat.
const ZEPHYR: &str = "\
{%- for message in messages -%}
    {{- '<|' + message.role + '|>\\n' + message.content + (eos_token or '') + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>\\n' -}}
{%- endif -%}
";

/// For base models that know no turns: each turn on lines of its own, an answer closed by the end of the sequence.
const PLAIN: &str = "\
{%- for message in messages -%}
    {{- message.content + ((eos_token or '') if message.role == 'assistant' else '') + '\\n' -}}
{%- endfor -%}
";
