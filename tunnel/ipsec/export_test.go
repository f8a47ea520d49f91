package ipsec

// DeriveIfID is deriveIfID.
var DeriveIfID = deriveIfID
