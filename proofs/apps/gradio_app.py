"""A Gradio app: a file's size, and a generator whose steps appear one by one."""

import os
import time

import gradio


def size(file):
    return os.path.getsize(file)


def steps(count):
    for number in range(int(count)):
        time.sleep(0.3)
        yield f"step {number}"


with gradio.Blocks() as app:
    file, number, bytes_ = gradio.File(), gradio.Number(3), gradio.Number()
    text = gradio.Textbox()
    gradio.Button("size").click(size, file, bytes_, api_name="size")
    gradio.Button("steps").click(steps, number, text, api_name="steps")

app.launch(server_name="127.0.0.1", server_port=int(os.environ["PORT"]))
