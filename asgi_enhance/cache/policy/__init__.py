"""What an HTTP cache decides, one question a file; nothing here does I/O, awaits, or looks at a clock.

fields        what a field value says (dates, ages, Cache-Control, RFC 9213 targeted fields, lists)
options       what the operator has chosen
storing       may this response be stored, and on which terms (RFC 9111 3)
freshness     how old is it, how long is it fresh (RFC 9111 4.2)
search        which differences of the query make no difference (No-Vary-Search)
vary          which of the stored variants is this request's (RFC 9111 4.1)
reuse         may this stored response answer this request (RFC 9111 4, 5.2.1; RFC 5861)
conditional   304 or not; what to ask the app; what a 304 changes (RFC 9111 4.3; RFC 9110 13)
ranges        which bytes of it (RFC 9110 14)
answer        what of it, then
invalidation  what a write makes invalid (RFC 9111 4.4; RFC 9875)
purges        what has been purged since it was stored
status        how it is told (RFC 9211)
"""
