package inbox

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
)

// xaes is XAES-256-GCM, as https://c2sp.org/XAES-256-GCM specifies it: AES-256-GCM
// whose key is derived for each message from half of a nonce of 24 bytes, by the KDF of
// NIST SP 800-108 in counter mode with CMAC. AES-GCM alone has nonces of 12 bytes, of which
// one may take 2^32 at random for a key; these are for 2^80 messages.
type xaes struct {
	c  cipher.Block
	k1 [aes.BlockSize]byte // CMAC's subkey for whole blocks
}

const (
	xaesKey   = 32
	xaesNonce = 24
	xaesTag   = 16
)

// newXAES makes one of a key of 32 bytes.
func newXAES(key []byte) (*xaes, error) {
	if len(key) != xaesKey {
		return nil, aes.KeySizeError(len(key))
	}
	c, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	x := &xaes{c: c}
	c.Encrypt(x.k1[:], x.k1[:])
	var carry byte
	for i := len(x.k1) - 1; i >= 0; i-- {
		carry, x.k1[i] = x.k1[i]>>7, x.k1[i]<<1|carry
	}
	x.k1[len(x.k1)-1] ^= carry * 0b1000_0111
	return x, nil
}

// message is the AES-256-GCM for a nonce, which takes its second half.
func (x *xaes) message(nonce []byte) (cipher.AEAD, []byte) {
	var k [xaesKey]byte
	for i, half := range [][]byte{k[:aes.BlockSize], k[aes.BlockSize:]} {
		copy(half, []byte{0, byte(i + 1), 'X', 0})
		copy(half[4:], nonce[:12])
		subtle.XORBytes(half, half, x.k1[:])
		x.c.Encrypt(half, half)
	}
	c, err := aes.NewCipher(k[:])
	if err != nil {
		panic("a key of 32 bytes is one of AES-256: " + err.Error())
	}
	g, err := cipher.NewGCM(c)
	if err != nil {
		panic("AES has blocks of 16 bytes: " + err.Error())
	}
	return g, nonce[12:xaesNonce]
}

// seal appends the ciphertext and its tag to dst.
func (x *xaes) seal(dst, nonce, text, data []byte) []byte {
	g, n := x.message(nonce)
	return g.Seal(dst, n, text, data)
}

// open appends the text to dst, or returns an error if anything is not what was sealed.
func (x *xaes) open(dst, nonce, sealed, data []byte) ([]byte, error) {
	g, n := x.message(nonce)
	return g.Open(dst, n, sealed, data)
}
