"""Reads a page as a browser would."""

import html.parser


class Page(html.parser.HTMLParser):
  """The tags, the text and the addresses of a page; raises if tags do not match."""

  def __init__(self, path):
    super().__init__()
    self.source = path.read_text(encoding='utf-8')
    self.open, self.tags, self.text, self.addresses = [], [], '', []
    self.feed(self.source)
    assert not self.open

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.addresses += [v for k, v in attrs if k in ('src', 'href', 'xlink:href')]

  def handle_starttag(self, tag, attrs):
    self.handle_startendtag(tag, attrs)
    if tag not in ('meta', 'img', 'br'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data
