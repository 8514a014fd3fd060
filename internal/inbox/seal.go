package inbox

import (
	"crypto/rand"
	"encoding/binary"
	"strings"
)

// What a stored message carries is sealed by the store, on its way to JetStream, if the
// node has keys (keys.go):
//
//	header  2 <seq> <tag> <prev> <ms> <ttl> s <id> <key>     in the clear, and authenticated
//	body    nonce (24 bytes), then by XAES-256-GCM:
//	        j or b, length of from, from, body
//
// Authenticated beside the header are the cluster and the user: a message that was copied
// to another user, another cluster or another place in the log, or given another time,
// does not open. What is in the clear is what the owner needs to append behind a message
// without its key.

// Why what a message carries is not known.
const (
	UnopenedKey      = "unknown_key" // sealed by a key that this node does not have
	UnopenedUnsealed = "unsealed"    // not sealed, and such ones are refused
	UnopenedForged   = "forged"      // the key is there, and this is not what it sealed
	UnopenedLost     = "lost_key"    // the operator says that the key is lost
)

// Unopened is why what a stored message carries is not known.
type Unopened struct {
	Why      string
	Key      string          // by which it was sealed, as Refs tells it
	Replaced <-chan struct{} // closed when the node has other keys
}

func (u *Unopened) Error() string {
	return "a stored message cannot be opened: " + strings.ReplaceAll(u.Why, "_", " ") + " " + u.Key
}

// Final tells whether the message will never come. Otherwise other keys may open it: what
// follows has to wait.
func (u *Unopened) Final() bool { return u.Why == UnopenedForged || u.Why == UnopenedLost }

// sealedData is what is authenticated beside what is sealed: neither a cluster nor a user
// has a zero byte.
func sealedData(cluster, user, meta string) []byte {
	return []byte("dialring stored payload\x00" + cluster + "\x00" + user + "\x00" + meta)
}

// sealed returns the header and the body with which a message is stored.
func (k *Keys) sealed(cluster, user string, e *Entry) (meta string, body []byte) {
	key := k.cur.Load().seal
	if key == nil {
		return e.Meta(), e.Body
	}
	meta = e.meta(metaSealed, key.ref)
	body = make([]byte, xaesNonce, xaesNonce+1+binary.MaxVarintLen16+len(e.From)+len(e.Body)+xaesTag)
	_, _ = rand.Read(body) // it never fails
	body = append(body, e.kind())
	body = binary.AppendUvarint(body, uint64(len(e.From)))
	body = append(body, e.From...)
	body = append(body, e.Body...)
	return meta, key.aead.seal(body[:xaesNonce], body[:xaesNonce], body[xaesNonce:], sealedData(cluster, user, meta)) // in place
}

// open completes a message as it is stored, in place. One that it cannot open is left
// without what it carries, and with the reason.
func (k *Keys) open(cluster, user string, e *Entry) {
	set := k.cur.Load()
	meta, body, ref := e.sealed.meta, e.Body, e.sealed.key
	if ref == "" {
		if set.refuse {
			e.unopened(set, UnopenedUnsealed)
		}
		return
	}
	key := set.keys[ref]
	id, _, _ := strings.Cut(ref, refMark)
	switch {
	case key == nil && set.lost[id]:
		e.unopened(set, UnopenedLost)
		return
	case key == nil:
		e.unopened(set, UnopenedKey)
		return
	case len(body) < xaesNonce+xaesTag:
		e.unopened(set, UnopenedForged)
		return
	}
	text, err := key.aead.open(nil, body[:xaesNonce], body[xaesNonce:], sealedData(cluster, user, meta))
	if err != nil || !e.parseSealed(text) {
		e.unopened(set, UnopenedForged)
		return
	}
	e.sealed = sealedMeta{}
}

func (e *Entry) unopened(set *keySet, why string) {
	e.Unopened = &Unopened{Why: why, Key: e.sealed.key, Replaced: set.replaced}
	e.sealed = sealedMeta{}
	e.JSON, e.From, e.Body = false, "", nil
}

// parseSealed reads what was sealed.
func (e *Entry) parseSealed(text []byte) bool {
	if len(text) == 0 || text[0] != kindJSON && text[0] != kindBytes {
		return false
	}
	n, size := binary.Uvarint(text[1:])
	if size <= 0 || n > uint64(len(text)-1-size) { // #nosec G115 -- size is at most the rest
		return false
	}
	rest := text[1+size:]
	e.JSON, e.From, e.Body = text[0] == kindJSON, string(rest[:n]), rest[n:]
	return true
}
