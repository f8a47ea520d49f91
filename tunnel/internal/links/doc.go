// Package links finds, marks and ends the links that tunnel drivers own.
//
// It owns: telling a driver's links in the secure namespace from all others by
// their marks, writing the mark onto a new link, bringing a link to its MTU
// and up, and deleting it. Every driver whose devices are kernel links
// does these things in the same way.
//
// It does not own how a link is made or what it carries: that is each driver's.
//
// Invariants: a link without our mark, or with another driver's, is never
// taken for ours, except one that an agent made and did not live to mark.
//
// Start with Owner.
package links
