"""Chat templates of well-known families, each written down in short: what they show, and refuse."""

from __future__ import annotations

CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system %}"
    "{% set text = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m.content %}"
    "{% else %}{% set text = m.content %}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)

LLAMA_3 = """{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}
{%- if tools %}{{- 'Environment: ipython\n' }}{%- endif %}
{{- system + '<|eot_id|>' }}
{%- if tools %}
    {%- set first = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
    {{- '<|start_header_id|>user<|end_header_id|>\n\nRespond in the format ' }}
    {{- '{"name": function name, "parameters": arguments}.\n\n' }}
    {%- for t in tools %}{{- t | tojson(indent=4) + '\n\n' }}{%- endfor %}
    {{- first + '<|eot_id|>' }}
{%- endif %}
{%- for m in messages %}
    {%- if 'tool_calls' in m %}
        {%- if m.tool_calls | length != 1 %}
            {{- raise_exception('This model only supports single tool-calls at once!') }}
        {%- endif %}
        {%- set call = m.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
        {{- '{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- '}<|eot_id|>' }}
    {%- elif m.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + m.content | tojson + '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}
        {{- m.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

MISTRAL_1 = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)

MISTRAL_3 = """{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content %}{%- set turns = messages[1:] %}
{%- else %}{%- set turns = messages %}{%- endif %}
{%- set users = turns | selectattr('role', 'equalto', 'user') | list %}
{%- set ns = namespace(index=0) %}
{%- for m in turns %}
    {%- if not (m.role == 'tool' or m.tool_calls is defined) %}
        {%- if (m.role == 'user') != (ns.index % 2 == 0) %}
            {{- raise_exception('After the optional system message, roles must alternate') }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for m in turns %}
    {%- if m.role == 'user' %}
        {%- if tools and m == users[-1] %}
            {{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {%- if loop.last and system is defined %}
            {{- '[INST] ' + system + '\n\n' + m.content + '[/INST]' }}
        {%- else %}{{- '[INST] ' + m.content + '[/INST]' }}{%- endif %}
    {%- elif m.tool_calls is defined %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in m.tool_calls %}
            {%- if call.id | length != 9 %}{{- raise_exception('IDs have length 9!') }}{%- endif %}
            {%- set out = call.function | tojson %}
            {{- out[:-1] + ', "id": "' + call.id + '"}' }}
            {{- ', ' if not loop.last else ']' + eos_token }}
        {%- endfor %}
    {%- elif m.role == 'assistant' %}{{- ' ' + m.content + eos_token }}
    {%- elif m.role == 'tool' %}
        {%- if m.tool_call_id | length != 9 %}
            {{- raise_exception('IDs have length 9!') }}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + m.content + ', "call_id": "' + m.tool_call_id }}
        {{- '"}[/TOOL_RESULTS]' }}
    {%- else %}{{- raise_exception('Only user and assistant roles are supported') }}{%- endif %}
{%- endfor %}
"""

MISTRAL_11 = """{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {{- '[SYSTEM_PROMPT]' + messages[0].content + '[/SYSTEM_PROMPT]' }}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- if tools %}{{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{- '[INST]' + m.content + '[/INST]' }}
    {%- elif m.role == 'assistant' %}
        {{- m.content or '' }}
        {%- for call in m.tool_calls or [] %}
            {{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' + call.function.arguments | tojson }}
        {%- endfor %}
        {{- eos_token }}
    {%- elif m.role == 'tool' %}{{- '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}
    {%- else %}{{- raise_exception('unknown role') }}{%- endif %}
{%- endfor %}
"""

GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

PHI_3 = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ '<|system|>\n' + m.content + '<|end|>\n' }}"
    "{% elif m.role == 'user' %}{{ '<|user|>\n' + m.content + '<|end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|assistant|>\n' + m.content + '<|end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

PHI_4 = (
    "{% if messages[0].role == 'system' %}{{ '<|system|>' + messages[0].content }}"
    "{% else %}{{ '<|system|>' }}{% endif %}"
    "{% if tools %}{{ '<|tool|>' + tools | tojson + '<|/tool|>' }}{% endif %}{{ '<|end|>' }}"
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ '<|tool_response|>' + m.content | tojson + '<|end|>' }}"
    "{% elif m.role != 'system' %}{{ '<|' + m.role + '|>' }}"
    "{% if m.content %}{{ m.content }}{% endif %}"
    "{% for call in m.tool_calls %}"
    "{{ '<|tool_call|>' + call.function | tojson + '<|/tool_call|>' }}{% endfor %}"
    "{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

ZEPHYR = (
    "{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '<|user|>\n' + m.content + eos_token }}"
    "{% elif m.role == 'system' %}{{ '<|system|>\n' + m.content + eos_token }}"
    "{% elif m.role == 'assistant' %}{{ '<|assistant|>\n' + m.content + eos_token }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '\n<|assistant|>\n' }}{% endif %}"
    "{% endfor %}"
)

_QWEN_TOOLS = """{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
    {{- '# Tools\n\nSignatures are within <tools></tools> XML tags:\n<tools>' }}
    {%- for tool in tools %}{{- '\n' + tool | tojson }}{%- endfor %}
    {{- '\n</tools>\n\nReturn a json object within <tool_call></tool_call> XML tags:\n' }}
    {{- '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>' }}
    {{- '<|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
"""
_QWEN_CALLS = """{%- for call in m.tool_calls %}
            {%- if (loop.first and content) or not loop.first %}{{- '\n' }}{%- endif %}
            {{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif m.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
"""

QWEN_25 = (
    _QWEN_TOOLS
    + """{%- for m in messages %}
    {%- set content = m.content %}
    {%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' + content }}
        """
    + _QWEN_CALLS
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)

QWEN_3 = (
    _QWEN_TOOLS
    + """{%- set ns = namespace(last=messages | length - 1, searching=true) %}
{%- for m in messages[::-1] %}
    {%- if ns.searching and m.role == 'user' and not m.content.startswith('<tool_response>') %}
        {%- set ns.searching = false %}
        {%- set ns.last = messages | length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set content = m.content if m.content is string else '' %}
    {%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}
    {%- elif m.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if m.reasoning_content is string %}
            {%- set thought = m.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}
        {%- endif %}
        {{- content }}
        """
    + _QWEN_CALLS
    + """{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""
)

DEEPSEEK_R1 = """{%- set ns = namespace(first=true, tool=false, system='') -%}
{%- for m in messages -%}
  {%- if m.role == 'system' -%}{%- set ns.system = m.content -%}{%- endif -%}
{%- endfor -%}{{ bos_token }}{{ ns.system }}
{%- for m in messages -%}
  {%- if m.role == 'user' -%}{%- set ns.tool = false -%}{{ '<｜User｜>' + m.content }}{%- endif -%}
  {%- if m.role == 'assistant' and m.tool_calls -%}
    {%- set ns.tool = false -%}
    {%- for tool in m.tool_calls -%}
      {{ '<｜Assistant｜><｜tool▁calls▁begin｜>' if loop.first else '\n' }}
      {{- '<｜tool▁call▁begin｜>' + tool.type + '<｜tool▁sep｜>' + tool.function.name }}
      {{- '\n```json\n' + tool.function.arguments + '\n```<｜tool▁call▁end｜>' }}
    {%- endfor -%}{{ '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}
  {%- endif -%}
  {%- if m.role == 'assistant' and m.content is not none -%}
    {%- if ns.tool -%}{{ '<｜tool▁outputs▁end｜>' + m.content + '<｜end▁of▁sentence｜>' }}
      {%- set ns.tool = false -%}
    {%- else -%}
      {%- set content = m.content.split('</think>')[-1] -%}
      {{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}
    {%- endif -%}
  {%- endif -%}
  {%- if m.role == 'tool' -%}
    {%- if not ns.tool -%}{{ '<｜tool▁outputs▁begin｜>' }}{%- else -%}{{ '\n' }}{%- endif -%}
    {%- set ns.tool = true -%}
    {{ '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}
  {%- endif -%}
{%- endfor -%}
{%- if ns.tool -%}{{ '<｜tool▁outputs▁end｜>' }}{%- endif -%}
{%- if add_generation_prompt and not ns.tool -%}{{ '<｜Assistant｜><think>\n' }}{%- endif -%}
"""

DEEPSEEK_31 = """{{ bos_token }}
{%- set ns = namespace(user=false) -%}
{%- for m in messages if m.role == 'system' -%}{{ m.content + '\n\n' }}{%- endfor -%}
{%- for m in messages -%}
  {%- if m.role == 'user' -%}{%- set ns.user = true -%}{{ '<｜User｜>' + m.content }}
  {%- elif m.role == 'assistant' -%}
    {%- if ns.user -%}{{ '<｜Assistant｜></think>' }}{%- endif -%}
    {%- set ns.user = false -%}
    {{ m.content or '' }}
    {%- if m.tool_calls -%}{{ '<｜tool▁calls▁begin｜>' }}
      {%- for tool in m.tool_calls -%}
        {{ '<｜tool▁call▁begin｜>' + tool.function.name + '<｜tool▁sep｜>' }}
        {{- tool.function.arguments + '<｜tool▁call▁end｜>' }}
      {%- endfor -%}{{ '<｜tool▁calls▁end｜>' }}
    {%- endif -%}{{ '<｜end▁of▁sentence｜>' }}
  {%- elif m.role == 'tool' -%}
    {%- set ns.user = false -%}
    {{ '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and ns.user -%}
  {{ '<｜Assistant｜>' }}{{ '<think>' if thinking else '</think>' }}
{%- endif -%}
"""

GPT_OSS = """{{- '<|start|>system<|message|>Reasoning: ' + reasoning_effort | default('medium') }}
{{- '\n# Valid channels: analysis, commentary, final.<|end|>' }}
{%- for m in messages %}
    {%- if m.role == 'system' %}
        {{- '<|start|>developer<|message|># Instructions\n\n' + m.content + '<|end|>' }}
    {%- elif m.role == 'user' %}
        {{- '<|start|>user<|message|>' + m.content + '<|end|>' }}
    {%- elif m.role == 'assistant' %}
        {%- if m.thinking and loop.last %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}
        {%- endif %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}
    {%- else %}{{- raise_exception('unknown role') }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}
"""

GRANITE = """{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = 'You are Granite.' %}{%- endif %}
{%- if tools %}
    {%- set system = system + '\n\nRespond only with <|tool_call|> followed by a JSON list.' %}
{%- elif thinking %}
    {%- set system = system + '\n\nWrite your thoughts between <think></think> and your ' %}
    {%- set system = system + 'response between <response></response>.' %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\n' }}
{%- if tools %}
    {{- '<|start_of_role|>available_tools<|end_of_role|>' + tools | tojson(indent=4) }}
    {{- '<|end_of_text|>\n' }}
{%- endif %}
{%- for m in messages %}
    {{- '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}
"""

COMMAND_R = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + messages[0].content }}"
    "{{ '<|END_OF_TURN_TOKEN|>' }}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% set who = '<|USER_TOKEN|>' if m.role == 'user' else '<|CHATBOT_TOKEN|>' %}"
    "{{ '<|START_OF_TURN_TOKEN|>' + who + m.content.strip() + '<|END_OF_TURN_TOKEN|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)

NEMOTRON = """{%- set ns = namespace(think=true) %}
{%- for m in messages if m.role in ('user', 'system') %}
    {%- if '/no_think' in m.content %}{%- set ns.think = false %}{%- endif %}
{%- endfor %}
{%- if messages[0].role == 'system' %}
    {{- '<SPECIAL_10>System\n' + messages[0].content.replace('/no_think', '').strip() }}
    {%- set messages = messages[1:] %}
{%- else %}{{- '<SPECIAL_10>System\n' }}{%- endif %}
{%- if tools %}{{- '\n<AVAILABLE_TOOLS>' + tools | tojson + '</AVAILABLE_TOOLS>' }}{%- endif %}
{{- '\n\n' }}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{- '<SPECIAL_11>User\n' + m.content.strip() + '\n' }}
    {%- elif m.role == 'tool' %}
        {{- '<SPECIAL_11>User\n<TOOL_RESPONSE>[' + m.content + ']</TOOL_RESPONSE>\n\n' }}
    {%- elif m.role == 'assistant' %}
        {{- '<SPECIAL_11>Assistant\n' + m.content.split('</think>')[-1].strip() }}
        {%- if m.tool_calls %}
            {{- '<TOOLCALL>[' }}
            {%- for call in m.tool_calls %}
                {{- '{"name": "' + call.function.name + '", "arguments": ' }}
                {{- call.function.arguments | tojson + '}' + (', ' if not loop.last else '') }}
            {%- endfor %}
            {{- ']</TOOLCALL>' }}
        {%- endif %}
        {{- '\n<SPECIAL_12>\n\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<SPECIAL_11>Assistant\n' + ('<think>\n' if ns.think else '<think></think>') }}
{%- endif %}
"""

FUNCTIONARY = """{{- bos_token + '<|start_header_id|>system<|end_header_id|>\n\n' }}
{%- for t in tools or [] %}
    {{- "Use the function '" + t.function.name + "'\n" + t.function | tojson + '\n' }}
{%- endfor %}
{{- '<function=name>{"a": 1}</function><|eot_id|>' }}
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + m.content + '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + (m.content or '') }}
        {%- for call in m.tool_calls or [] %}
            {{- '<function=' + call.function.name + '>' + call.function.arguments + '</function>' }}
        {%- endfor %}
        {{- '<|eom_id|>' if m.tool_calls else '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""

GLM = """{{- '[gMASK]<sop>' }}
{%- if tools %}
    {{- '<|system|>\n' + tools | tojson + '\n<tool_call>{function-name}\n<arg_key>' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- '<|assistant|>\n<think></think>\n' + m.content.strip() }}
        {%- for call in m.tool_calls or [] %}
            {{- '\n<tool_call>' + call.function.name }}
            {%- for k, v in call.function.arguments.items() %}
                {{- '\n<arg_key>' + k + '</arg_key>\n<arg_value>' + v + '</arg_value>' }}
            {%- endfor %}
            {{- '\n</tool_call>' }}
        {%- endfor %}
    {%- elif m.role == 'tool' %}{{- '<|observation|>\n' + m.content }}
    {%- else %}{{- '<|' + m.role + '|>\n' + m.content }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' + ('\n<think></think>' if enable_thinking is false else '') }}
{%- endif %}
"""

TEMPLATES = {
    "chatml": CHATML,
    "llama-2": LLAMA_2,
    "llama-3": LLAMA_3,
    "mistral-1": MISTRAL_1,
    "mistral-3": MISTRAL_3,
    "mistral-11": MISTRAL_11,
    "gemma": GEMMA,
    "phi-3": PHI_3,
    "phi-4": PHI_4,
    "zephyr": ZEPHYR,
    "qwen-2.5": QWEN_25,
    "qwen-3": QWEN_3,
    "deepseek-r1": DEEPSEEK_R1,
    "deepseek-3.1": DEEPSEEK_31,
    "gpt-oss": GPT_OSS,
    "granite": GRANITE,
    "command-r": COMMAND_R,
    "nemotron": NEMOTRON,
    "functionary": FUNCTIONARY,
    "glm": GLM,
}
