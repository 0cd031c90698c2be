"""A Flask app that knows nothing of Natsway; one line has it believe the fields of the proxy on its own machine."""

from flask import Flask, jsonify, request, url_for
from werkzeug.middleware.proxy_fix import ProxyFix

app = Flask(__name__)
app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1, x_port=1, x_prefix=1)


@app.get("/health")
def health():
    return {"well": True}


@app.get("/")
def hello():
    return jsonify(hello="world", client=request.remote_addr, link=url_for("hello", _external=True))


@app.post("/form")
def form():
    return jsonify(fields=request.form.to_dict(), files=sorted(request.files))
